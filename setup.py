"""The configurations travel in the wheel: `conf/` at the root is installed as the package `midefense.conf`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages("src"), "midefense.conf"],
    package_dir={"": "src", "midefense.conf": "conf"},
    package_data={"midefense.conf": ["*.yaml", "**/*.yaml"], "midefense.report": ["*.html", "*.css", "*.js"]},
)
