"""The report: scores, aggregates, curves and videos of runs, beside published work."""
