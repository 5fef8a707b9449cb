"""Image transfer learning with Keras, to learn and to do.

import tlkeras as tl

data = tl.load_folder("photos/")
backbone = tl.load_backbone("MobileNetV2", weights="imagenet")
model = tl.build_classifier(backbone, data.num_classes)
tl.train_head(model, data.train, data.validation)
tl.unfreeze_top(model, stages=1)
tl.fine_tune(model, data.train, data.validation)
print(tl.evaluate(tl.predict(model, data)))
"""

from tlkeras.artifact import Artifact, ArtifactError, load_artifact, save_artifact
from tlkeras.backbones import Backbone, WeightsNotFoundError, list_backbones, load_backbone, stage_model
from tlkeras.data import Data, light_augmentation, load_arrays, load_folder, load_tfds
from tlkeras.evaluation import compare, evaluate, mean_interval, open_test, predict
from tlkeras.features import compute_features
from tlkeras.fractals import make_digits, make_fractals
from tlkeras.freezing import FreezeAudit, FreezeError, freeze, freeze_batch_norm, unfreeze_top
from tlkeras.heads import build_classifier, build_head
from tlkeras.plots import plot_confusion, plot_history, plot_intervals, plot_pictures, plot_reliability
from tlkeras.probes import fit_probe, probe_head, set_head
from tlkeras.recipes import transfer
from tlkeras.scan import decode_picture
from tlkeras.splits import Split, read_manifest, write_manifest
from tlkeras.training import History, Settings, fine_tune, train_from_scratch, train_head
from tlkeras.version import __version__

__all__ = [
    "__version__",
    "Artifact",
    "ArtifactError",
    "Backbone",
    "build_classifier",
    "build_head",
    "compare",
    "compute_features",
    "Data",
    "decode_picture",
    "evaluate",
    "fine_tune",
    "fit_probe",
    "freeze",
    "freeze_batch_norm",
    "FreezeAudit",
    "FreezeError",
    "History",
    "light_augmentation",
    "list_backbones",
    "load_arrays",
    "load_artifact",
    "load_backbone",
    "load_folder",
    "load_tfds",
    "make_digits",
    "make_fractals",
    "mean_interval",
    "open_test",
    "plot_confusion",
    "plot_history",
    "plot_intervals",
    "plot_pictures",
    "plot_reliability",
    "predict",
    "probe_head",
    "read_manifest",
    "save_artifact",
    "set_head",
    "Settings",
    "Split",
    "stage_model",
    "train_from_scratch",
    "train_head",
    "transfer",
    "unfreeze_top",
    "WeightsNotFoundError",
    "write_manifest",
]
