"""A Hugging Face folder to files that devices run. Knows nothing of the teacher."""

from stillroom.verbs import make_callable

make_callable(__name__, "stillroom.pipeline:export")
