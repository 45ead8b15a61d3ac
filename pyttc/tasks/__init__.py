"""Tasks with exact verifiers, and the models trained on them."""

from pathlib import Path

MODELS = Path(__file__).resolve().parent.parent / "models"


def model_names() -> list[str]:
    """The models that come with the package, largest first."""
    folders = [path.parent for path in MODELS.glob("*/model.safetensors")]
    folders.sort(key=lambda folder: -(folder / "model.safetensors").stat().st_size)
    return [folder.name for folder in folders]


def model_path(name: str) -> Path:
    """The folder of a model that comes with the package: config, tokenizer, weights, reward heads."""
    if name not in model_names():
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(model_names())}")
    return MODELS / name
