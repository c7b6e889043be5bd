"""Looking at checkpoints, checking, comparing and tidying them: `trainkit checkpoint` for Python.

Nothing here prints, and nothing but ``cleaning``, ``pinning`` and ``exporting`` writes. No state
is needed, nor a claim on the root: a run that is under way there is not disturbed.
"""
