"""Whether somebody distilled or copied a model: tests on weights, training order, marks and answers, and campaigns in logs."""
