"""Tests of qchem and srdft: one file per module."""
