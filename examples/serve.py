"""An HTTP endpoint: photograph in, faces with landmarks out.

    pip install 'pfld-edge[examples]'
    uvicorn --app-dir examples serve:app    # the environment variable DETECTOR names another detector
    curl -F photo=@portrait.jpg localhost:8000/faces

What strangers send is not trusted: uploads are cut off at 10 MB, pictures at 40 megapixels before they are unpacked.
"""

import os
from functools import cache

import cv2
import numpy as np
from fastapi import FastAPI, HTTPException, UploadFile

from pfld_edge_runtime import FaceAnalyzer

MOST_BYTES = 10_000_000
MOST_PIXELS = 40_000_000
# OpenCV reads it when it first unpacks a picture.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))

app = FastAPI(title="pfld-edge")


@cache
def analyzer() -> FaceAnalyzer:
    """Open the networks once; onnxruntime's sessions may be used from several threads."""
    return FaceAnalyzer(os.environ.get("DETECTOR"))


@app.post("/faces")
def faces(photo: UploadFile) -> dict[str, object]:
    """Find the faces of a photograph: boxes, 98 landmarks, confidence, all in pixels of the photograph."""
    data = photo.file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise HTTPException(413, f"at most {MOST_BYTES} bytes")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error:
        image = None
    if image is None:
        raise HTTPException(422, "not a photograph that can be read")
    return {"faces": analyzer()(np.asarray(image, np.uint8), color="bgr").to_dicts()}
