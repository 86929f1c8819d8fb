"""Maps the four top-level folders onto the import name kvsim; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

FOLDERS = {
    "kvsim": "sim",
    "kvsim.calibrate": "calibrate",
    "kvsim.workloads": "workloads",
    "kvsim.reports": "reports",
}

packages = [
    f"{name}{'.' + sub if sub else ''}"
    for name, folder in FOLDERS.items()
    for sub in ["", *find_packages(folder)]
]
setup(
    packages=packages,
    package_dir=FOLDERS,
    # "**" also reaches folders that hold only data, such as presets
    package_data={
        "": [
            "py.typed",
            *(f"**/*.{end}" for end in ("yaml", "parquet", "jsonl.gz", "csv.gz", "md", "npz", "json")),
        ]
    },
)
