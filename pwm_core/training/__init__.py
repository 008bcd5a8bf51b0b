"""Training and evaluating one agent: update, replay, loop, evaluation, videos."""
