"""What to measure next: samplers, budgets, transfer between shapes, Fast-Run itself."""

from __future__ import annotations

import warnings

# tqdm, which Optuna imports, says so in every notebook without ipywidgets; nothing here needs them.
warnings.filterwarnings("ignore", "IProgress not found")
