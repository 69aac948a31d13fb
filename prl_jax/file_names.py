"""The names of the files and folders of a workdir; each stands here alone. Reports read them without JAX."""

# In the workdir itself.
CONFIG_FILE = "config.json"  # the config, and what the run was made with
SUMMARY_FILE = "summary.json"  # what an evaluation came to
REPORT_FILE = "report.html"
REPORT_TEXT_FILE = "report.md"
LOCK_FILE = ".lock"
COMPARISON_FILE = "comparison.json"  # what the runs of a comparison come to
DATA_DIR = "data"  # built-in data, and measurements of others
MEASURED_DIR = "measured"
ANSWERS_DIR = "answers"  # of remote judges, among the data

# In the folder of a stage.
RESULT_FILE = "result.json"  # of a finished stage
METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
TIMINGS_FILE = "timings.jsonl"
ANCHORS_FILE = "anchors.jsonl"
PAIRS_FILE = "pairs.jsonl"
WINS_FILE = "wins.jsonl"
REFERENCES_FILE = "references.npz"  # log-probabilities that frozen policies give to fixed responses
MODEL_FILE = "model.json"  # the card of its model
CHECKPOINTS_DIR = "checkpoints"
PIECES_DIR = "pieces"  # what a stage without steps has done so far
PROFILE_DIR = "profile"

TOKENIZER_DIR = "tokenizer"  # of the run, and of each model
