"""A process-reward model as a linear head on the hidden states the engine has anyway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .paths import Paths


class LinearHead:
    """Scores paths by a linear function of the hidden state of their last token::

        score = sigmoid(weight @ hidden + bias)        (without the sigmoid for activation=None)

    The hidden state is the final one, after the model's last normalisation. The pass over the last
    token is the one that the next decoding step needs anyway: scoring costs no pass of its own.

    Args:
        weight: [H] or [1, H]. bias: a number or a tensor of one.
        activation: "sigmoid" or None.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | float = 0.0,
        activation: str | None = "sigmoid",
    ) -> None:
        if not isinstance(weight, torch.Tensor) or not weight.numel():
            raise TypeError(f"weight: got {type(weight).__name__}, expected a tensor [H] or [1, H]")
        bias = torch.as_tensor(bias)
        if bias.numel() != 1:
            raise ValueError(f"bias: got shape {list(bias.shape)}, expected one number")
        if weight.numel() != weight.shape[-1]:
            raise ValueError(f"weight: got shape {list(weight.shape)}, expected [H] or [1, H]")
        if activation not in ("sigmoid", None):
            raise ValueError(f"activation: got {activation!r}, expected 'sigmoid' or None")
        self.weight = weight.reshape(-1).float()
        self.bias = bias.float().reshape(())
        self.activation = activation

    @classmethod
    def from_file(cls, path: str, activation: str | None = "sigmoid") -> LinearHead:
        """From a safetensors file with `weight` and, if there is one, `bias`.

        Raises:
            ValueError: for a file that holds no such head.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file ({error})") from None
        if "weight" not in tensors:
            raise ValueError(f"{path}: holds {sorted(tensors)}, expected 'weight' and maybe 'bias'")
        return cls(tensors["weight"], tensors.get("bias", 0.0), activation)

    def save(self, path: str) -> None:
        from safetensors.torch import save_file

        save_file({"weight": self.weight, "bias": self.bias}, path)

    def __call__(self, paths: Paths) -> torch.Tensor:
        """float32 [N]."""
        hidden = paths.hidden()
        if hidden.shape[1] != self.weight.numel():
            raise ValueError(
                f"weight: got {self.weight.numel()} inputs, expected the model's {hidden.shape[1]}"
            )
        # a sum a row, so that a score depends on its own row alone
        score = (hidden.float() * self.weight.to(hidden.device)).sum(-1) + self.bias.to(
            hidden.device
        )
        paths.spend_flops(2.0 * hidden.numel())
        return torch.sigmoid(score) if self.activation == "sigmoid" else score
