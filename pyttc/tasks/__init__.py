"""Tasks with exact verifiers, and the models trained on them."""
