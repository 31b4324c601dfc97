"""Rendered data in the layout of 3DIEBench: solids or meshes in random poses under a coloured light."""
