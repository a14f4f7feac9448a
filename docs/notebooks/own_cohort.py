# %% [markdown]
# # From a folder of slides and a CSV to a prediction
#
# Slides and labels in, a trained model with a report out, then a prediction with its
# attention. The slides here are small drawn ones, made in the first cell, so that the
# notebook runs in a minute on two cores. With slides of your own, begin at the second.

# %%
import pathlib

from experiments.phantoms.artefacts import Artefacts
from experiments.phantoms.make_cohort import MakeCohort, make_cohort

practice = MakeCohort(
    out="practice",
    n_train=20,
    n_val=10,
    n_test=12,
    side_px=512,
    styles=8,
    prevalence=0.5,
    artefacts=Artefacts(mpps=(0.5, 0.8)),
    workers=1,
)
manifest = make_cohort(practice)
print("\n".join(manifest.read_text().splitlines()[:4]))

# %% [markdown]
# A manifest has one line for each slide. `path` and `label` are enough; what this one
# has besides (patients, splits, ...) is used. One slide, and where its tissue is:

# %%
import wsi_jax

slide = wsi_jax.open_slide(next(pathlib.Path("practice/testing/images").glob("*.tif")))
slide

# %%
wsi_jax.tile(slide, mpp=2.0, size_px=32)

# %% [markdown]
# Training is one call. `quick` is ABMIL on features of a random encoder: no weights are
# needed, and it shows that all parts work together, not how well a method does. Any
# field of its config is an argument. The same call resumes a training that was stopped.

# %%
run = wsi_jax.train(
    "quick",
    manifest=manifest,
    grid={"mpp": 2.0, "size_px": 32, "min_tissue": 0.5},
    train={"steps": 200},
    heatmaps=0,
)
run

# %% [markdown]
# The report, `run.report`, is a page with intervals, curves, what was refused and why,
# and what it cost. Its numbers are in `run.metrics`, its lines in `run.predictions`.
#
# A prediction of one slide shows its attention; that of a folder is a table. The label
# is decided at a threshold that the validation slides chose, not at one half.

# %%
called = [line for line in run.predictions if line["prediction"] == "tumor"]
prediction = run.predict(f"practice/testing/images/{called[0]['slide_id']}.tif")
prediction

# %%
prediction.label, prediction.probabilities

# %%
run.predict("practice/testing/images")

# %% [markdown]
# Another seed, and both runs together: probabilities are averaged, and the spread says
# how far apart the two are.

# %%
other = wsi_jax.train(
    "quick",
    manifest=manifest,
    run_dir="runs/quick_1",
    features="runs/quick/features",
    grid={"mpp": 2.0, "size_px": 32, "min_tissue": 0.5},
    train={"steps": 200, "seed": 1},
    heatmaps=0,
)
both = wsi_jax.predict([run, other], prediction.path)
both.probabilities, both.spread
