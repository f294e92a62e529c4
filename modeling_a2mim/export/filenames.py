"""Names of files in the output folder of a run, which is what users load and the Hub gets."""

RECORD_FILE = "training.json"
NEEDED = ("README.md", "config.json", "model.safetensors")
PROCESSOR = "preprocessor_config.json"
EVAL_RESULTS_FOLDER = ".eval_results"

PICTURE, CURVE, EXAMPLE = "reconstruction.png", "loss_curve.png", "example.png"
CONFUSION, ERRORS = "confusion_matrix.png", "worst_examples.png"
ROC, PRECISION_RECALL = "roc_curve.png", "precision_recall_curve.png"
PREDICTIONS = "predictions.png"  # of segmenters and detectors
PICTURES = (PICTURE, CURVE, EXAMPLE, PREDICTIONS, CONFUSION, ROC, PRECISION_RECALL)
SHOWING_DATA = (PICTURE, EXAMPLE, PREDICTIONS)  # figures with images that were trained or evaluated on
# What `a2mim export` makes of a model, where it is not told another place.
ONNX_FILE, PROGRAM_FILE = "onnx/model.onnx", "model.pt2"  # the former as Optimum and transformers.js have it
RUNTIME_FILES = (ONNX_FILE, "onnx/model_int8.onnx", "onnx/model_check.json", PROGRAM_FILE)

PLACEHOLDER = "ORG/NAME"  # in a model card, until the name of the repository is known
