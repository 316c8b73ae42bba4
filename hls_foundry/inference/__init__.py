"""Tiled prediction, polygons, rasters and maps."""
