"""The application that `serve.yaml` names: ``import_path: deployments.app:build``."""

from __future__ import annotations

from coe.serving.app import CascadeArgs, build

__all__ = ["CascadeArgs", "build"]
