"""Problems with checked answers: from task files, packages and lm-evaluation-harness."""
