"""Stage `report`.

Reads   every table of the earlier stages
Writes  `report.html`, `data_card.md`

`stage` is the stage; `facts` computes the numbers, from which `sections` and `card` make the two documents; `charts`
draws, `reasons` explains reasons, `recipe` is what FuseChat-3.0 published; `page` and `templates/` make the HTML.
"""
