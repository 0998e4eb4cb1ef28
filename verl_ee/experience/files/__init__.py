"""Files that verl_ee writes and reads: atomic writing, versions, JSON lines, Parquet tables and their parts."""
