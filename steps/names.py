"""What the artifacts are called: the words that a visitor of the dashboard reads in the graph."""

INVENTORY = "chip inventory"
VALID_INVENTORY = "valid chips"
VALIDATION_REPORT = "validation report"
SPLITS = "chip splits"
MODEL_BUNDLE = "model bundle"
TRAINING_HISTORY = "training curves"
EVALUATION = "evaluation on test chips"
PROMOTION = "promotion decision"
PUBLISHED = "published archive"
MODEL = "model in production"
TEST_CHIPS = "test chips"
PLACED_MODELS = "archive in place"
ENDPOINT = "endpoint"
INFERENCE_TEST = "inference test"

KEYS = {name: constant.lower() for constant, name in tuple(globals().items()) if constant.isupper()}
"""What code calls them, in a summary's `artifacts` say: the constant's name in small letters, by the artifact's name."""
