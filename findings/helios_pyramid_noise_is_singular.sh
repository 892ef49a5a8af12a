#!/usr/bin/env bash
# One would guess: diffusers' HeliosPyramidPipeline draws its block noise on every processor, as the covariance that it factors
#   has 1e-8 added to its diagonal for safety.
# What really happens: with the scheduler's default gamma of 1/3 and blocks of 2 x 2 that covariance, (1 + gamma) I - gamma,
#   is singular: 1 + gamma = 4 gamma. The 1e-8 is lost, as float32 steps by 1.2e-7 near 1. Whether torch.linalg.cholesky
#   factors the rounded matrix or raises "not positive-definite" is then the luck of a processor's arithmetic: with the same
#   wheel it went through on Intel with AVX-512 and raised on AMD with AVX2.
# Version: diffusers 0.42.1 (pipelines/helios/pipeline_helios_pyramid.py, sample_block_noise), numpy 2.2.6.
# Output seen:
#   default gamma: 0.3333333333333333
#   in float32 the safety term changes nothing: True
#   rank of the covariance: 3 of 4; its smallest eigenvalue: 0.0e+00
# Why it matters here: guided pipelines are tested on it, and the same test passed on one processor and failed on another; a
#   gamma below 1/3 (0.3) makes the matrix positive definite.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-deps diffusers==0.42.1 numpy==2.2.6
"$folder/venv/bin/python" - "$folder/venv" <<'PY'
import ast, fractions, pathlib, sys

import numpy as np

package = next(pathlib.Path(sys.argv[1]).glob("lib/python3*/site-packages/diffusers"))
# The default of the scheduler and the steps of the pipeline, read from their sources: neither needs to run.
scheduler = ast.parse((package / "schedulers/scheduling_helios.py").read_text())
init = next(n for n in ast.walk(scheduler) if isinstance(n, ast.FunctionDef) and n.name == "__init__")
defaults = dict(zip([a.arg for a in init.args.args][-len(init.args.defaults):], init.args.defaults, strict=True))
gamma = eval(compile(ast.Expression(defaults["gamma"]), "gamma", "eval"))
text = (package / "pipelines/helios/pipeline_helios_pyramid.py").read_text()
assert "torch.linalg.cholesky(cov)" in text and "* 1e-8" in text, "sample_block_noise has changed"
print("default gamma:", gamma)
plain = np.eye(4, dtype=np.float32) * np.float32(1 + gamma) - np.full((4, 4), gamma, dtype=np.float32)
safe = plain + np.eye(4, dtype=np.float32) * np.float32(1e-8)
same = bool((plain == safe).all())
print("in float32 the safety term changes nothing:", same)
# In exact arithmetic, of the value that is meant: 1/3.
third = fractions.Fraction(gamma).limit_denominator(100)
smallest = 1 + third - 4 * third
rank = np.linalg.matrix_rank(np.array(safe, dtype=np.float64), tol=1e-6)
print(f"rank of the covariance: {rank} of 4; its smallest eigenvalue: {float(smallest):.1e}")
sys.exit(not (same and rank == 3 and smallest == 0))
PY
