"""Who runs a grid: this process, several, or a cluster; and where a run stands."""
