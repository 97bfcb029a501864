"""Stage `report`.

Reads   every table of the earlier stages
Writes  `report.html`, `data_card.md`

`stage` is the stage; `facts` are the numbers, `page` and `card` the two documents, `charts` the pictures, `recipe` what
FuseChat-3.0 published.
"""
