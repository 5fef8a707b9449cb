"""Lessons under pytest run two at a time; TensorFlow's threads would wait for one another over pictures this small."""

import os

os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
