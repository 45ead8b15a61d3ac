"""What several tests share."""

import os

# Hypothesis examples an axis: 200 on every push, more in the nightly script.
EXAMPLES = int(os.environ.get("PYTTC_EXAMPLES", 200))
