"""Cluster files from a plan: for Ray's launcher on AWS and Google Cloud, for KubeRay, and for a local fleet. Data out only."""
