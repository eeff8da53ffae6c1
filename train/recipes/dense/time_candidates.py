"""Times candidates against today's pfld-edge-s and m in INT8: minimum and median of interleaved calls, one thread."""
import sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from pfld_edge_convert.calibration_batches import FaceSource, calibration_crops, proof_crops
from pfld_edge_convert.int8_stage import Int8Request
from pfld_edge_convert.network import open_network
from pfld_edge_convert.pipeline import convert, int8_path
from pfld_edge_runtime import Contract, fingerprint_image
from pfld_edge_train.models import ModelConfig, build_model
from networks import HeatMapNet, SHAPES, Shape
C={"m-today":lambda: build_model(ModelConfig("pfld-edge-m")),"s-today":lambda: build_model(ModelConfig("pfld-edge-s"))}
def add(n,s): C[n]=lambda: HeatMapNet(replace(s,bound=None))
m,s=SHAPES["m"],SHAPES["s"]
add("m-fine1",replace(m,fine=1)); add("m-fine2",m); add("s-fine1",replace(s,fine=1)); add("s-fine2",s)
add("m-j2-s3x1",replace(m,stages=((48,2),(96,2),(192,1)),joined=2))
add("s-s3x1-j2",replace(s,stages=((32,2),(64,2),(128,1)),joined=2))
add("s-48-96",replace(s,stages=((32,1),(64,2),(128,2))))
contract=Contract(); faces=calibration_crops(FaceSource(),contract)
out=Path(sys.argv[1]); out.mkdir(exist_ok=True,parents=True); calls={}
from pfld_edge_convert.quantization.settings import QuantizationSettings
for n,b in C.items():
    p=out/f"{n}.onnx"
    if not int8_path(p).exists():
        torch.manual_seed(0); mod=b().eval()
        r=convert(mod,contract,p,proof_crops(contract),Int8Request(faces.crops[:16],"timing",QuantizationSettings(ranges="minmax",feedback=False),allow_slower=True))
        print(n,f"{r.files[0].macs/1e6:.1f}M macs {r.files[0].parameters/1e6:.2f}M", r.files[1].size, "float left:", r.int8.coverage.floating, flush=True)
    net=open_network(int8_path(p),1); crop=fingerprint_image(1,112)[None]
    calls[n]=(lambda net=net: net.predict(crop))
t={n:[] for n in calls}
for c in calls.values(): c()
for _ in range(400):
    for n,c in calls.items():
        a=time.perf_counter(); c(); t[n].append(time.perf_counter()-a)
for n,v in t.items(): print(f"{n:12s} min {min(v)*1e3:.3f} p10 {np.percentile(v,10)*1e3:.3f} p50 {np.median(v)*1e3:.3f}  ms")
