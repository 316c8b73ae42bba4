"""The tests. A package, since one that the SageMaker SDK brings (smdebug-rulesconfig) installs a `tests` of its own, which would win."""
