"""Command `benchmark`: a model's scores in the benchmarks that FuseChat-3.0 is judged by, beside the published ones.

Reads the benchmarks' data files. Writes `answers/MODEL/`, `judgments/`, `graded/MODEL/BENCHMARK.parquet`,
`results.json`, `table.md`, `report.html`.
"""
