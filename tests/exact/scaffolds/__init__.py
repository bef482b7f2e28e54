"""Tests of the skeletons of plug-ins."""
