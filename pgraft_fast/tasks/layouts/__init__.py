"""Layouts of pages and screens: labelled boxes, their files, and what generated ones are judged by."""
