"""`benchmark`: models scored on a folder of standard evaluation sets, DataComp's 38 tasks for one."""
