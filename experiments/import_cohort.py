"""Another tool's CSVs and splits in, our manifest out.

    python -m experiments.import_cohort --from clam --csv dataset.csv \
        --splits splits_0.csv --slides SLIDES --out my_slides.csv

    --from           --csv                         besides
    clam             case_id,slide_id,label        --splits splits_0.csv (or _bool.csv)
    sasha            the same, or with patient_id  --splits split_1.json
    torchmil         any CSV with slide_id,label   --splits splits.csv
    streaming_clam   train.csv val.csv test.csv
    trident          any CSV with slide_id,label   --wsis list.csv (wsi,mpp)
    manifest         ours

Slides are found by name anywhere below --slides. Prints how many there are of each
split and class, and what would be refused: a patient in two splits, a class missing.
--clam FOLDER writes the cohort as CLAM has it, besides.
"""

from wsi_jax.run.import_manifest import main

if __name__ == "__main__":
    main(__doc__)
