"""The errors: what the sums say, the doors, and what an outlier does."""

import csv
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "sources"))

from making import gguf

from weigh.cli import main
from weigh.quant import get, parse
from weigh.quant.base import Quantizer
from weigh.quant.demonstration import demonstrate
from weigh.quant.errors import LEAST_POWER, Errors, compare, measure, output

SCHEMAS = Path(__file__).parents[2] / "docs" / "schema"
rng = np.random.default_rng(3)


def write(path, tensors):
    """A safetensors file of fp32 tensors."""
    header, data = {}, b""
    for name, array in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + array.nbytes],
        }
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.fixture
def checkpoint(tmp_path):
    tensors = {
        f"model.layers.{i}.mlp.{w}.weight": rng.standard_normal((8, 512), np.float32) for i in (0, 1) for w in "ab"
    }
    tensors["model.layers.1.mlp.b.weight"][3, 100] = 90
    tensors["model.layers.0.mlp.short.weight"] = rng.standard_normal((4, 96), np.float32)
    tensors["model.embed_tokens.weight"] = rng.standard_normal((16, 64), np.float32)
    write(tmp_path / "model.safetensors", tensors)
    return tmp_path


def run(capsys, *words):
    code = main([str(w) for w in words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_sums_say_what_numpy_says():
    values = rng.standard_normal((16, 64)).astype(np.float32)
    found = values + rng.standard_normal(values.shape).astype(np.float32) * 0.01
    errors, error = compare(values, found), found.astype(np.float64) - values
    relative = np.linalg.norm(error) / np.linalg.norm(values.astype(np.float64))
    assert errors.relative_rmse == pytest.approx(relative, rel=1e-12)
    assert errors.sqnr == pytest.approx(-20 * math.log10(relative), rel=1e-12)
    assert errors.mean_absolute == pytest.approx(np.abs(error).mean(), rel=1e-12)
    assert errors.largest == np.abs(error).max()
    assert errors.cosine == pytest.approx(np.corrcoef(values.ravel(), found.ravel())[0, 1], abs=1e-4)
    assert sum(errors.histogram) == values.size
    rms = np.sqrt((values.astype(np.float64) ** 2).mean())
    bounds = [0, *(2.0**p for p in range(LEAST_POWER, LEAST_POWER + len(errors.histogram) - 1)), np.inf]
    assert list(errors.histogram) == np.histogram(np.abs(error) / rms, bounds)[0].tolist()


def test_tensors_add_up():
    a, b = (rng.standard_normal((4, 64)).astype(np.float32) for _ in range(2))
    quantizer = get("nf4")
    together = np.concatenate([a, b])
    added, whole = measure(quantizer, a) + measure(quantizer, b), measure(quantizer, together)
    assert added.relative_rmse == pytest.approx(whole.relative_rmse, rel=1e-12)
    assert added.largest == whole.largest
    assert added.elements == whole.elements


def test_nothing_and_nothing_wrong():
    assert Errors().relative_rmse == 0
    zeros = compare(np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32))
    assert (zeros.relative_rmse, zeros.cosine, zeros.sqnr) == (0, 1, math.inf)
    assert compare(np.zeros((2, 4)), np.ones((2, 4))).relative_rmse == math.inf
    assert zeros.as_dict()["sqnr_db"] is None


def test_what_outliers_cost_the_others():
    values = rng.standard_normal((8, 512)).astype(np.float32)
    values[2, 7] = 300
    whole, blocks = (measure(get(name), values) for name in ("absmax_tensor", "absmax_block"))
    assert whole.outliers == whole.outlier_columns == 1
    assert whole.rest > 20 * whole.rest_without_outliers
    assert blocks.rest < whole.rest / 5  # one block of 64 bears it all
    assert whole.rest_without_outliers == pytest.approx(
        measure(get("absmax_tensor"), np.where(values > 9, 0, values)).rest
    )


def test_change_of_a_layers_output():
    weight, inputs = (
        rng.standard_normal((32, 128)).astype(np.float32),
        rng.standard_normal((5, 7, 128)).astype(np.float32),
    )
    exact: Quantizer = parse("sparse:sparsity=0,dtype=fp32")
    assert output(exact, weight, inputs).relative_rmse == 0
    found = output(get("nf4"), weight, inputs)
    assert found.elements == 5 * 7 * 32
    assert found.relative_rmse == pytest.approx(measure(get("nf4"), weight).relative_rmse, rel=0.3)


def test_command(checkpoint, capsys, tmp_path):
    page, lines = tmp_path / "e.html", tmp_path / "e.csv"
    np.savez(tmp_path / "in.npz", **{"model.layers.0.mlp.a": np.ones((3, 512), np.float32)})
    words = ("errors", checkpoint, "--to", "nf4,q4_k,int4:group=32,bits=3", "--html", page, "--csv", lines)
    code, text, _ = run(capsys, *words, "--inputs", tmp_path / "in.npz")
    assert code == 0
    assert "model.layers.1.mlp.b.weight" in text
    assert "4/5" in text
    assert "q4_k cannot store 1 of 5: rows of 96 values" in text
    assert "nf4: output of model.layers.0.mlp.a off by" in text
    assert "embed_tokens" not in text
    written = list(csv.DictReader(io.StringIO(lines.read_text())))
    assert len(written) == 15
    assert {row["format"] for row in written} == {"nf4", "q4_k", "int4:group=32,bits=3"}
    assert page.read_text().count("<svg") == 3
    code, text, _ = run(capsys, *words[:4], "--json")
    answer = json.loads(text)
    jsonschema.validate(answer, json.loads((SCHEMAS / "errors.json").read_text()))
    nf4 = next(f for f in answer["formats"] if f["format"] == "nf4")
    assert set(nf4["layers"]) == {"model.layers.0", "model.layers.1"}
    assert float(written[0]["relative_rmse"]) == nf4["tensors"][0]["errors"]["relative_rmse"]
    for by in ("layer", "tensor"):
        assert "model.layers.1" in run(capsys, *words[:4], "--by", by)[1]


def test_list_and_bad_input(checkpoint, capsys, tmp_path):
    code, text, _ = run(capsys, "errors", "--list")
    assert code == 0
    assert re.search(r"nf4_double +4\.1270", text)
    jsonschema.validate(
        json.loads(run(capsys, "errors", "--list", "--json")[1]), json.loads((SCHEMAS / "errors.json").read_text())
    )
    assert run(capsys, "errors", checkpoint)[0] == 2
    assert "Did you mean nf4" in run(capsys, "errors", checkpoint, "--to", "nf5")[2]
    assert "no such matrix" in run(capsys, "errors", checkpoint, "--to", "nf4", "--tensors", "x*")[2]
    (tmp_path / "bad.npz").write_text("no")
    assert "no .npz file" in run(capsys, "errors", checkpoint, "--to", "nf4", "--inputs", tmp_path / "bad.npz")[2]
    np.savez(tmp_path / "in.npz", nowhere=np.ones((1, 512), np.float32))
    assert (
        "the checkpoint has no nowhere.weight"
        in run(capsys, "errors", checkpoint, "--to", "nf4", "--inputs", tmp_path / "in.npz")[2]
    )


def test_matrices_of_gguf_files_are_read(capsys, tmp_path):
    values = rng.standard_normal((4, 512), np.float32)
    packed = get("q4_k").quantize(values)
    pairs = [("general.architecture", 8, "llama")]
    header = gguf(pairs, [("blk.0.ffn_up.weight", (512, 4), 12, 0)])
    (tmp_path / "m.gguf").write_bytes(header + packed.parts["blocks"].tobytes())
    code, text, error = run(capsys, "errors", tmp_path / "m.gguf", "--to", "q4_k,q8_0", "--json")
    assert code == 0, error
    found = {f["format"]: f["total"]["relative_rmse"] for f in json.loads(text)["formats"]}
    stored = measure(get("q8_0"), get("q4_k").dequantize(packed)).relative_rmse
    assert found["q8_0"] == stored
    assert found["q4_k"] < 0.02  # once more in the same format changes little


def test_without_numpy_it_says_what_to_install():
    for words in (["errors", ".", "--to", "nf4"], ["errors", "--list"], ["outliers"]):
        code = f"import sys; sys.modules['numpy'] = None; from weigh.cli import main; sys.exit(main({words!r}))"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert result.returncode == 3
        assert "numpy, which is not installed. Run: pip install 'weigh[lab]'" in result.stderr


def test_outlier_demonstration(capsys, tmp_path):
    shown = demonstrate()
    assert shown.codes == ((28, -12, -101, 28, -73, 19, 56, 127), (3, -1, -10, 3, -7, 2, 6, 127))
    assert shown.back[1][0] == pytest.approx(1.287402, abs=1e-6)
    whole, blocks = shown.by_block
    assert all(a > 15 * b for i, (a, b) in enumerate(zip(whole, blocks, strict=True)) if i != shown.hit)
    assert sorted(shown.products.values(), reverse=True) == list(shown.products.values())
    assert shown.products["llm_int8"] == pytest.approx(shown.alone, rel=1e-3)
    code, text, _ = run(capsys, "outliers", "--svg", tmp_path / "o.svg")
    assert code == 0
    assert "1.2874" in text
    assert (tmp_path / "o.svg").read_text().count("<rect") > 16
    answer = json.loads(run(capsys, "outliers", "--json")[1])
    jsonschema.validate(answer, json.loads((SCHEMAS / "outliers.json").read_text()))
    assert run(capsys, "outliers", "--vector", "a,b")[0] == 2
    assert run(capsys, "outliers", "--block", "60")[0] == 2


def test_outlier_features_of_inputs(capsys, tmp_path):
    inputs = {f"layers.{i}": rng.standard_normal((4, 20, 32)).astype(np.float32) for i in range(4)}
    for layer in inputs.values():
        layer[:, ::2, 5] = 40
    np.savez(tmp_path / "in.npz", **inputs)
    code, text, _ = run(capsys, "outliers", "--inputs", tmp_path / "in.npz")
    assert code == 0
    assert "1 have them in 25% of the layers and at 6% of the positions" in text
    answer = json.loads(run(capsys, "outliers", "--inputs", tmp_path / "in.npz", "--json")[1])
    jsonschema.validate(answer, json.loads((SCHEMAS / "outliers.json").read_text()))
    assert answer["systematic"] == [5]
    np.savez(tmp_path / "two.npz", wide=np.ones((2, 64), np.float32), **inputs)
    assert "have 32, 64 features" in run(capsys, "outliers", "--inputs", tmp_path / "two.npz")[2]
    assert run(capsys, "outliers", "--inputs", tmp_path / "two.npz", "--width", 32)[0] == 0
    assert run(capsys, "outliers", "--inputs", tmp_path / "two.npz", "--width", 33)[0] == 2
