"""How many of torch's threads a piece of work takes on a CPU, who shares it, and how they wait while it runs."""

from pgraft_fast.threads.team import Team, team_of
from pgraft_fast.threads.work import LEAST_SHARED, work_of

__all__ = ["LEAST_SHARED", "Team", "team_of", "work_of"]
