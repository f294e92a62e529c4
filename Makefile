# Everything but `gpu` runs in .venv, which is made when missing; all it takes is Python 3.11+ and the package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARCH ?=

export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: demo test test-ci test-all test-lowest sweep step torture fuzz stream rates adapt probe-layers methods factors \
	colour first-run transfer dense interactions gpu cards results quality style docs clean

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	touch $@

demo: $(VENV)/installed  ## pre-train a small encoder on the bundled images, and see what it is worth
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/demo.py $(if $(ARCH),--architecture $(ARCH))

test: $(VENV)/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

test-ci: $(VENV)/installed  ## tests that take some seconds each, which .ci/run runs as well
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "ci and not slow"

test-all: $(VENV)/installed  ## all tests, those that take minutes as well
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m ""

test-lowest:  ## the tests with the oldest releases that setup.cfg allows
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --editable '.[dev]' transformers==5.17.0 torch==2.11.0 \
		torchvision==0.26.0 datasets==4.8.5 accelerate==1.12.0 timm==1.0.31 huggingface-hub==1.33.0 \
		evaluate==0.4.6 scikit-learn==1.7.2
	HF_HUB_OFFLINE=1 .venv-lowest/bin/python -m pytest

sweep: $(VENV)/installed  ## try to pre-train every encoder of timm (half an hour on 2 cores)
	HF_HUB_OFFLINE=1 $(BIN)/a2mim encoders --output benchmarks/results

step: $(VENV)/installed  ## what a step costs over the bare encoder (half an hour on 2 cores)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/step.py --output benchmarks/results/step.json

torture: $(VENV)/installed  ## kill a streamed run 40 times, and see that nothing is lost (half an hour on 2 cores)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/torture.py --output benchmarks/results/torture.json

fuzz: $(VENV)/installed  ## 22,500 broken images
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/fuzz.py --output benchmarks/results/fuzz.json

stream: $(VENV)/installed  ## how fast, how random, and how flat in memory images are read
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/loader.py --output benchmarks/results/loader.json
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/stream.py --output benchmarks/results/stream.json

rates: $(VENV)/installed  ## at which rates encoders learn, and how to fine-tune with few labels (hours on 2 cores)
	$(BIN)/python -m pip install --quiet --no-compile elpv-dataset
	$(BIN)/python benchmarks/images.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/rates.py --output benchmarks/results/rates.json
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/few_labels.py --output benchmarks/results/few_labels.json

first-run: $(VENV)/installed  ## how far all defaults come on folders of images (a day on 2 cores; goes on where it was stopped)
	$(BIN)/python -m pip install --quiet --no-compile elpv-dataset
	$(BIN)/python benchmarks/images.py --folders
	$(BIN)/python benchmarks/first_run.py --output benchmarks/results/first_run.json
	$(BIN)/python benchmarks/first_run_labels.py --output benchmarks/results/first_run_labels.json

adapt: $(VENV)/installed  ## what continuing from weights is worth (three hours on 2 cores; goes on where it was stopped)
	$(BIN)/python -m pip install --quiet --no-compile elpv-dataset
	$(BIN)/python benchmarks/images.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/adapt.py --output benchmarks/results/adapt.json

probe-layers: $(VENV)/installed  ## what to read from a frozen encoder (goes on where it was stopped)
	$(BIN)/python -m pip install --quiet --no-compile elpv-dataset
	$(BIN)/python benchmarks/images.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/probe_layers.py --output benchmarks/results/probe_layers.json

# Of lightly only losses and heads are used, which need none of what it would install.
methods: $(VENV)/installed  ## other ways of pre-training beside A2MIM (a day on 2 cores; goes on where it was stopped)
	$(BIN)/python -m pip install --quiet --no-compile elpv-dataset
	$(BIN)/python -m pip install --quiet --no-compile --no-deps lightly lightly_utils
	$(BIN)/python benchmarks/images.py --sets solar_cells fashion_mnist
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/methods_check.py --output benchmarks/results/methods_check.json
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/methods.py --output benchmarks/results/methods.json --only solar_cells
	$(BIN)/python benchmarks/images.py --sets fashion_mnist_60000
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/methods.py --output benchmarks/results/methods.json

factors: $(VENV)/installed  ## when a CNN gains, one factor at a time (a day on 2 cores; goes on where it was stopped)
	$(BIN)/python -m pip install --quiet --no-compile elpv-dataset
	$(BIN)/python -m pip install --quiet --no-compile --no-deps lightly lightly_utils
	$(BIN)/python benchmarks/images.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/factors.py --output benchmarks/results/factors.json
	for what in "random weights" base target; do HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/factors.py \
		--output benchmarks/results/factors.json --sets solar_cells --seeds 1 2 --only "$$what" || exit 1; done

colour: $(VENV)/installed  ## what few images in colour are worth (an hour on 2 cores; images.py names the packages)
	$(BIN)/python benchmarks/images.py --sets stamps photographs
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/colour.py --output benchmarks/results/colour.json

transfer: $(VENV)/installed  ## what pre-training is worth with few and many labels (an hour on 2 cores)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/transfer.py --output benchmarks/results

dense: $(VENV)/installed  ## the same for segmentation and detection (an hour and a half on 2 cores)
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.dense --output benchmarks/results/dense.json
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.dense --output benchmarks/results/dense.json \
		--tasks semantic-segmentation --learning_rate 1e-3

# Of the classifiers that `make transfer` fine-tuned on all labels; goes on where it was stopped.
INTERACTIONS = HF_HUB_OFFLINE=1 $(BIN)/python -m modeling_a2mim.analysis.interactions
interactions: $(VENV)/installed  ## interaction strength of a CNN and a ViT by how they started (half an hour on 2 cores)
	for kind in CNN ViT; do rm -f benchmarks/results/interactions/$$kind/interactions.*; \
		$(INTERACTIONS) transfer/$$kind-scratch-all-tuned/seed-0 transfer/$$kind-SimMIM-all-tuned/seed-0 \
		transfer/$$kind-A2MIM-all-tuned/seed-0 --names "$$kind from scratch" "$$kind SimMIM" "$$kind A2MIM" --grid 8 \
		--images 20 --pairs 20 --contexts 10 --out benchmarks/results/interactions/$$kind || exit 1; done
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.interactions --rounds 4 --draws 4 \
		--models transfer/CNN-A2MIM-all-tuned/seed-0 transfer/ViT-A2MIM-all-tuned/seed-0 \
		--output benchmarks/results/interactions.json

# Without .venv: with the torch, torchvision, timm and transformers that are there, and no package index.
GPU_OUTPUT ?= benchmarks/results/gpu.json
gpu:  ## effect, cost and memory on one GPU (8 minutes)
	HF_HUB_OFFLINE=1 $(PYTHON) benchmarks/gpu.py --output $(GPU_OUTPUT)

cards: $(VENV)/installed  ## the model cards of what `make demo` left here, and of the official models
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/cards.py

results:  ## put the tables of benchmarks/results/ into the documentation
	$(PYTHON) benchmarks/results_page.py

quality: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/mypy

style: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed  ## the documentation, in site/; a broken link or an undocumented name is an error
	NO_MKDOCS_2_WARNING=1 HF_HUB_OFFLINE=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-lowest site demo build dist *.egg-info
