"""The model as MLflow stores and serves it: a table of captions in, PNGs out.

MLflow copies this file beside the weights and runs it where the model is loaded ("models from
code"), so nothing is pickled. That place needs t2i_ray installed.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import mlflow
import pandas as pd
from PIL import Image

from t2i_ray.generate import Pipeline


class CaptionToPicture(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Columns ``caption`` and, if given, ``seed`` -> columns ``png``, base64, and ``warning``."""

    def load_context(self, context: Any) -> None:
        """Load the generator and the text encoder from the folder logged with the model."""
        self.pipeline = Pipeline.from_folder(context.artifacts["generator"])

    def predict(self, model_input: pd.DataFrame) -> pd.DataFrame:
        """Draw one picture for each row; a row without a seed takes its number as seed."""
        captions = [str(caption) for caption in model_input["caption"]]
        seeds = list(range(len(captions)))
        if "seed" in model_input:
            column = model_input["seed"]
            seeds = [i if pd.isna(seed) else int(seed) for i, seed in enumerate(column)]
        images = self.pipeline.images(captions, seeds)  # uint8 [n, height, width, 3]
        warnings = [self.pipeline.warning(caption) for caption in captions]
        return pd.DataFrame({"png": [_base64_png(image) for image in images], "warning": warnings})


def _base64_png(image: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


mlflow.models.set_model(CaptionToPicture())
