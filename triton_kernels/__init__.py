"""Triton kernels, one file an op. Installed as pyttc.triton_kernels; the bare name is another project's."""

if __name__ == "triton_kernels":
    raise ImportError(
        "import pyttc.triton_kernels: the name triton_kernels belongs to Triton's own package"
    )
