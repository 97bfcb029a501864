"""Stage `report`.

Reads   every table of the earlier stages
Writes  `report.html`, `data_card.md`

`stage` is the stage; `facts` are the numbers, `sections` and `card` what the two documents tell of them; `charts` the
pictures, `reasons` the words for reasons, `recipe` what FuseChat-3.0 published; `page` and `templates/` the HTML.
"""
