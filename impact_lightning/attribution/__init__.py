"""Attribution: which patches a vision transformer used, and curves that test whether a map is right."""
