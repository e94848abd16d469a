"""From dependencies to a plan: which units go.

In: dependencies, an amount or a budget, a criterion. Out: a :class:`~fxprune.planning.plan.Plan` of plain values.

Read ``planner.py`` first (amounts, the search within a budget), then ``ranking.py`` (which groups, in which order their units
go) and ``plan.py`` (the plan as made).
Tests: ``tests/planning``.
"""
