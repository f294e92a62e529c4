"""What the commands of the analysis can be told; without torch, so that their help is there at once."""

DTYPES = ("float32", "bfloat16", "float16")  # of autocast
LABELS = ("names", "index", "predicted")  # whose odds are measured
RATIOS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)  # orders of interactions
VALUES = ("log_odds", "log_prob", "logit")
FILLS = ("zero", "mean")
SAMPLINGS = ("shared", "windows", "independent")  # of contexts
