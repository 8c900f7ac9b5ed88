"""Maps the top-level folders to import names, which pyproject.toml cannot do for packages under a prefix."""

from setuptools import find_namespace_packages, setup

FOLDERS = {"stackloom": "sdk"} | {
    f"stackloom.{name}": name for name in ("core", "registry", "kernels", "environments", "plugins")
}

setup(
    package_dir=FOLDERS,
    packages=[
        *FOLDERS,
        *(
            f"{prefix}.{sub}"
            for prefix, folder in FOLDERS.items()
            for sub in find_namespace_packages(folder, exclude=["*__pycache__*"])
        ),
    ],
    package_data={"": ["*.toml", "*.md", "*.json", "*.mako", "*.tmpl", "py.typed"]},
)
