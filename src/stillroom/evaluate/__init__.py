"""What was kept and what was lost. Knows nothing of how the student was made."""

from stillroom.verbs import make_callable

make_callable(__name__, "stillroom.pipeline:evaluate")
