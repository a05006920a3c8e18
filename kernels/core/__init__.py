"""The vocabulary: problems, layouts, processors, templates, and the float64 truth."""
