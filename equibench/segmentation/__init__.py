"""Semantic segmentation with mmsegmentation: encoders as backbones, P1's decode head, ADE20K.

`custom_imports=dict(imports=["equibench.segmentation"])` in a config of one's own registers `equibench.Encoder`,
`equibench.HyperNetHead` and `equibench.LinearHead` with mmsegmentation; in a script that has imported parts of this
package before mmengine, name `equibench.segmentation.engine` instead. What needs no mmsegmentation imports none of it.
"""

from __future__ import annotations

import sys

from equibench.segmentation.stub import missing_packages

# importing mmsegmentation takes seconds, which only those who came from there have already spent
if "mmengine" in sys.modules and not missing_packages():
    from equibench.segmentation import engine  # noqa: F401
