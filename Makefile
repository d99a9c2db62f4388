# make demo    what a visitor runs first: needs python3 and nothing else
# make check   lint, types, floors, documented commands, size ledger (what CI runs)
# make test    the built wheel, in an environment of its own
# make test-torch  the same wheel beside real PyTorch
# make bench   ratios against peers
# make fuzz    broken files for every reader, SECONDS=60 each
# make clean   remove everything that these made

PYTHON ?= python3
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check
PYTEST = -m pytest -p no:cacheprovider --numprocesses auto --dist worksteal
SOURCES := pyproject.toml README.md LICENSE $(shell find src -type f -not -name '*.pyc')

.PHONY: demo check test test-torch bench fuzz clean

demo: .venv/.installed
	.venv/bin/weigh train gpt2
	.venv/bin/weigh params gpt2

check: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy --strict src
	.venv/bin/lint-imports
	.venv/bin/python $(PYTEST) tests/docs
	.venv/bin/python tools/sizes.py

test: .venv-test/.wheel
	.venv-test/bin/python $(PYTEST) tests --ignore=tests/torch

test-torch: .venv-torch/.wheel
	.venv-torch/bin/python $(PYTEST) tests/torch

# Quantizers run beside their peers, which need PyTorch; what only they need lies in a folder of its own.
bench: .venv-test/.wheel .venv-bench/.peers
	for script in $(filter-out %/quantizers.py,$(wildcard benchmarks/*.py)); do .venv-test/bin/python $$script || exit 1; done
	PYTHONPATH=.venv-bench .venv-torch/bin/python benchmarks/quantizers.py

.venv-bench/.peers: .venv-torch/.wheel $(wildcard kernels/src/weigh_kernels/*)
	.venv-torch/bin/python $(PIP_INSTALL) --upgrade --no-deps --target .venv-bench torchao==0.18.0 ./kernels
	touch $@

# atheris where it can be had (Linux); good files changed at random where not.
fuzz: .venv-test/.wheel
	.venv-test/bin/python $(PIP_INSTALL) atheris || true
	.venv-test/bin/python tools/fuzz.py $(SECONDS)

clean:
	rm -rf .venv .venv-bench .venv-test .venv-torch build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# .venv sees src itself (an editable install): edits need no reinstall.
.venv/.installed: pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python $(PIP_INSTALL) --editable .
	touch $@

.venv/.dev: .venv/.installed
	.venv/bin/python $(PIP_INSTALL) --editable '.[dev]'
	touch $@

# The wheel's environments never see src: -I keeps the working folder off the path, and the assertion proves it.
dist/.built: $(SOURCES)
	test -x .venv-test/bin/python || $(PYTHON) -m venv .venv-test
	rm -rf dist && .venv-test/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	touch $@

.venv-test/.wheel: dist/.built
	.venv-test/bin/python $(PIP_INSTALL) "$$(echo dist/*.whl)[test]"
	.venv-test/bin/python $(PIP_INSTALL) --force-reinstall --no-deps dist/*.whl
	.venv-test/bin/python -I -c 'import weigh; assert "site-packages" in weigh.__file__, weigh.__file__'
	touch $@

# torch comes first and alone: whatever depends on it would otherwise choose a build with gigabytes of CUDA.
.venv-torch/.torch:
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python $(PIP_INSTALL) torch==2.13.0
	.venv-torch/bin/python $(PIP_INSTALL) transformers==5.23.0 peft==0.21.2 bitsandbytes==0.50.2 compressed-tensors==0.20.0 gguf==0.19.0
	.venv-torch/bin/python $(PIP_INSTALL) --no-deps --target .venv-torch/torchao torchao==0.18.0
	touch $@

.venv-torch/.wheel: dist/.built .venv-torch/.torch
	.venv-torch/bin/python $(PIP_INSTALL) "$$(echo dist/*.whl)[test]"
	.venv-torch/bin/python $(PIP_INSTALL) --force-reinstall --no-deps dist/*.whl
	.venv-torch/bin/python -I -c 'import weigh; assert "site-packages" in weigh.__file__, weigh.__file__'
	touch $@
