"""The scripts that build the site are importable, as they are for MkDocs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "hooks"))
