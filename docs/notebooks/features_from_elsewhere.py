# %% [markdown]
# # Features from elsewhere
#
# Multiple instance learning on features that something else has made: arrays in
# memory, or a folder of HDF5 files as CLAM and TRIDENT write them. First arrays. Each
# bag is the tiles of a slide, one vector a tile. In bags labelled `tumor` the first
# five tiles stand out; the model learns from the labels alone.

# %%
import numpy as np

import wsi_jax

rng = np.random.default_rng(0)
labels = rng.choice(["normal", "tumor"], 80)
bags = [rng.normal(size=(rng.integers(50, 200), 32)) for _ in labels]
for bag, label in zip(bags, labels, strict=True):
    if label == "tumor":
        bag[:5] += 1.0

model = wsi_jax.fit_bags(bags[:60], labels[:60], wsi_jax.ABMIL(width=64), steps=400)
label, probabilities, attention = model.predict(bags[-1])
model

# %% [markdown]
# A part of the bags validates, as in a run: it chooses the step that is kept, ends the
# training and sets the threshold. The last twenty bags were kept apart:

# %%
predictions = [model.predict(bag) for bag in bags[60:]]
right = [p.label == label for p, label in zip(predictions, labels[60:], strict=True)]
print(f"{sum(right)} of {len(right)} are right")

# %%
import matplotlib.pyplot as plt

first = list(labels[60:]).index("tumor")
figure, axes = plt.subplots(figsize=(6, 1.8), layout="constrained")
axes.bar(range(40), predictions[first].attention[:40])
axes.set(xlabel="tile", ylabel="attention", title="the first five stand out")
plt.show()
# %% [markdown]
# ## A folder of CLAM or TRIDENT
#
# Such a folder has one `SLIDE_ID.h5` for each slide, with `features` and `coords`. Here
# `wsi_jax.extract` makes one of drawn slides; with a folder of your own, begin at the
# next cell.

# %%
from experiments.phantoms.make_cohort import MakeCohort, make_cohort

practice = MakeCohort(
    out="practice", n_train=20, n_val=10, n_test=12, side_px=512, styles=8,
    prevalence=0.5, workers=1,
)  # fmt: skip
manifest = make_cohort(practice)
extraction = wsi_jax.extract(
    "quick",
    manifest=manifest,
    run_dir="extraction",
    grid={"mpp": 2.0, "size_px": 32, "min_tissue": 0.5},
)
(folder,) = extraction.features
sorted(path.name for path in folder.iterdir())[:3]

# %% [markdown]
# A run on the folder reads no slide to train. It ends in the same report.

# %%
run = wsi_jax.train(
    "abmil",
    manifest=manifest,
    precomputed=folder,
    run_dir="runs/precomputed",
    method=wsi_jax.ABMIL(width=128, attention=64, standardise=True),
    train={"steps": 100, "batch": 4, "validate_every": 20},
    **{"train.optimiser.learning_rate": 1e-3},
    heatmaps=0,
)
run

# %% [markdown]
# The same files as arrays, for a look at one model without a run:

# %%
import csv

import h5py

with open(manifest, newline="") as file:
    lines = [line for line in csv.DictReader(file) if line["split"] != "test"]
bags = []
for line in lines:
    with h5py.File(folder / f"{line['slide_id']}.h5") as file:
        bags.append(file["features"][()])
model = wsi_jax.fit_bags(
    bags,
    [line["label"] for line in lines],
    wsi_jax.CLAM(width=128, attention=64, standardise=True),
    patients=[line["patient_id"] for line in lines],
    steps=100,
    validate_every=20,
    optimiser={"learning_rate": 1e-3},
)
model
