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

import lazy_loader

from tlkeras.version import __version__

# Modules are imported when a name of theirs is first asked for: `import tlkeras` takes no time, and the command line
# can quiet TensorFlow before Keras imports it.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "advisor": ["Advice", "advise", "rank_backbones"],
        "artifact": ["Artifact", "load_artifact", "save_artifact"],
        "audit": ["FreezeAudit", "FreezeError"],
        "augmentation": ["light_augmentation"],
        "backbones": ["Backbone", "list_backbones", "load_backbone", "small_backbone", "stage_model"],
        "card": ["ArtifactError"],
        "codes": ["load_codes"],
        "data": ["Data"],
        "detection": ["Detections", "average_precision", "build_detector", "detect", "encode_objects"],
        "depth": ["ProbeTable", "probe"],
        "evaluation": ["compare", "evaluate"],
        "exercises": ["check"],
        "explain": ["grad_cam", "overlay_heat"],
        "export": ["export_artifact"],
        "features": ["Features", "compute_features", "extract_features"],
        "fractals": ["make_digits", "make_fractals", "make_scenes"],
        "freezing": ["freeze", "freeze_batch_norm", "settle_batch_norm", "unfreeze_stages", "unfreeze_top"],
        "handmade": ["colour_histogram", "hog_features"],
        "heads": ["build_classifier", "build_head"],
        "history": ["History"],
        "intervals": ["mean_interval"],
        "loaders": ["load_arrays", "load_folder"],
        "modelcard": ["read_model_card"],
        "pictures": ["decode_picture"],
        "pipelines": ["make_batches"],
        "plots": ["plot_confusion", "plot_history", "plot_intervals", "plot_pictures", "plot_reliability"],
        "predictions": ["open_test", "predict"],
        "pretexts": ["Labels", "Rotation", "SimCLR", "VICReg"],
        "pretraining": ["Pretrained", "Pretraining", "pretrain"],
        "probes": ["fit_probe", "probe_head", "set_head"],
        "recipes": ["transfer"],
        "registry": ["fetch_backbone", "publish_backbone"],
        "scores": ["h_score", "log_me"],
        "reconstruction": ["Autoencoder", "Colorization"],
        "settings": ["Settings"],
        "sounds": ["Sound", "make_struck_objects", "sound_summary"],
        "splits": ["Split", "read_manifest", "write_manifest"],
        "startup": ["start_lesson"],
        "tfds": ["load_tfds"],
        "training": ["fine_tune", "fine_tune_gradually", "train_from_scratch", "train_head"],
        "weights": ["WeightsNotFoundError"],
        "worlds": ["load_near"],
        "zoo": ["save_backbone"],
    },
)
__all__ = [*__all__, "__version__"]
